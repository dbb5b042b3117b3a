/*
 * bascule-select: which slot does this power-on take?
 *
 * For hosts whose bootloader does not know GPT boot flags. Runs in the initrd, before the root or
 * /usr is mounted: reads the partition table, applies the rule of Flatcar's GRUB ("gptprio.next"),
 * spends a try where there is one, and prints the slot in words that a shell can evaluate.
 *
 * The rule: among the partitions of the type, the highest priority above 0 of those that have a
 * try left or are marked successful; the first in the table on a tie. A try is spent whenever
 * there is one.
 *
 * The order of writes is that of the agent (bascule.formats.gpt_writes): backup copy, flush, the
 * primary's first 4 KiB in one piece, flush. A cut in between leaves a table that Linux reads.
 *
 * If the try cannot be written, a trial could repeat for ever; so then only a slot that needs no
 * writing is taken.
 *
 * Exit codes: 0 chosen, 1 nothing can be booted, 2 usage, 3 no disk, or no table on it.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define FLATCAR_USR "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"
#define BLOCK 4096u
#define MAX_ARRAY (1u << 20)
#define MAX_DISKS 64
#define PRIMARY_LBA 1u
#define LOCK_TRIES 100

struct disk {
	char path[PATH_MAX];
	int fd;
	int direct; /* the same, past the page cache; or -1 */
	int lock;   /* the disk's own node, for reading */
	uint32_t sector;
	uint64_t sectors;
};

struct copy {
	uint64_t lba;
	uint8_t *head;  /* the header's sector */
	uint8_t *array; /* whole sectors */
	uint64_t alternate, first_usable, last_usable, entries_lba;
	uint32_t header_size, count, entry_size;
	bool header_ok, ok;
};

struct choice {
	uint32_t partition; /* counts from 1 */
	uint32_t nth;       /* among the partitions of the type, from 0 */
	uint64_t attributes;
	uint8_t guid[16];
};

static uint64_t get(const uint8_t *at, int bytes)
{
	uint64_t value = 0;
	while (bytes-- > 0)
		value = value << 8 | at[bytes];
	return value;
}

static void put(uint8_t *at, uint64_t value, int bytes)
{
	for (int i = 0; i < bytes; i++, value >>= 8)
		at[i] = (uint8_t)value;
}

static uint32_t crc32(uint32_t crc, const uint8_t *data, size_t size)
{
	crc = ~crc;
	for (size_t i = 0; i < size; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static uint32_t header_crc(const uint8_t *head, uint32_t size)
{
	static const uint8_t zero[4];
	uint32_t crc = crc32(0, head, 16);
	crc = crc32(crc, zero, 4);
	return crc32(crc, head + 20, size - 20);
}

static void *room(size_t size)
{
	void *at = NULL;
	if (posix_memalign(&at, BLOCK, size) != 0) {
		fputs("bascule-select: out of memory\n", stderr);
		exit(3);
	}
	memset(at, 0, size);
	return at;
}

/* ── the disk ─────────────────────────────────────────────────────────────────────────────── */

static bool transfer(int fd, uint8_t *data, size_t size, off_t offset, bool write)
{
	while (size > 0) {
		ssize_t done = write ? pwrite(fd, data, size, offset) : pread(fd, data, size, offset);
		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return false;
		data += done;
		size -= (size_t)done;
		offset += done;
	}
	return true;
}

static bool disk_io(struct disk *disk, uint8_t *data, size_t size, uint64_t offset, bool write)
{
	if (size > disk->sectors * disk->sector || offset > disk->sectors * disk->sector - size)
		return false;
	if (disk->direct >= 0 && transfer(disk->direct, data, size, (off_t)offset, write))
		return true;
	return transfer(disk->fd, data, size, (off_t)offset, write);
}

static bool read_sectors(struct disk *disk, uint8_t *data, uint64_t lba, uint64_t count)
{
	if (lba >= disk->sectors || count > disk->sectors - lba)
		return false;
	return disk_io(disk, data, count * disk->sector, lba * disk->sector, false);
}

/* Writes and notices whether the bytes were there already: what is there is not written again. */
static bool put_bytes(struct disk *disk, const uint8_t *data, size_t size, uint64_t offset)
{
	uint8_t *there = room(size), *mine = room(size);
	bool done = true;
	memcpy(mine, data, size);
	if (!disk_io(disk, there, size, offset, false) || memcmp(there, mine, size) != 0)
		done = disk_io(disk, mine, size, offset, true);
	free(there);
	free(mine);
	return done;
}

/*
 * When a disk's node was open for writing, udev has the kernel read the table anew: the partitions
 * vanish for a moment, and the mount that waits for one of them fails. Nothing that udev must know
 * has changed; so the disk is written through a node that it does not watch.
 */
static int open_unwatched(const char *path, const struct stat *info, int mode)
{
	char own[64];
	int fd = -1;

	snprintf(own, sizeof own, "/dev/.bascule-select-%ld", (long)getpid());
	if ((mode & O_ACCMODE) == O_RDWR && S_ISBLK(info->st_mode) &&
	    mknod(own, S_IFBLK | 0600, info->st_rdev) == 0) {
		fd = open(own, mode);
		unlink(own);
	}
	if (fd < 0 && S_ISBLK(info->st_mode) && (mode & O_ACCMODE) == O_RDWR)
		fprintf(stderr, "bascule-select: %s: %s; partitions may vanish for a moment\n", own,
			strerror(errno));
	return fd < 0 ? open(path, mode) : fd;
}

static void close_disk(struct disk *disk)
{
	const int all[] = { disk->fd, disk->direct, disk->lock };

	for (size_t i = 0; i < sizeof all / sizeof *all; i++)
		if (all[i] >= 0)
			close(all[i]);
}

static bool open_disk(struct disk *disk, const char *path, bool write, uint32_t sector)
{
	struct stat info;
	int mode = (write ? O_RDWR : O_RDONLY) | O_CLOEXEC;
	off_t size;
	int asked = 0;

	if (snprintf(disk->path, sizeof disk->path, "%s", path) >= (int)sizeof disk->path)
		return false;
	disk->direct = disk->fd = -1;
	disk->lock = open(path, O_RDONLY | O_CLOEXEC);
	if (disk->lock < 0)
		return false;
	if (fstat(disk->lock, &info) != 0 || (!S_ISBLK(info.st_mode) && !S_ISREG(info.st_mode)))
		goto bad;
	disk->fd = open_unwatched(path, &info, mode);
	if (disk->fd < 0)
		goto bad;
	size = lseek(disk->fd, 0, SEEK_END);
	if (size < 0)
		goto bad;
	if (S_ISBLK(info.st_mode)) {
		if (ioctl(disk->fd, BLKSSZGET, &asked) != 0)
			goto bad;
		sector = (uint32_t)asked;
		disk->direct = open_unwatched(path, &info, mode | O_DIRECT);
	} else if (sector == 0) {
		char mark[8];
		bool large = pread(disk->fd, mark, 8, 512) != 8 || memcmp(mark, "EFI PART", 8) != 0;
		large = large && pread(disk->fd, mark, 8, 4096) == 8 && memcmp(mark, "EFI PART", 8) == 0;
		sector = large ? 4096 : 512;
	}
	if (sector != 512 && sector != 4096)
		goto bad;
	disk->sector = sector;
	disk->sectors = (uint64_t)size / sector;
	if (disk->sectors >= 6)
		return true;
bad:
	close_disk(disk);
	return false;
}

static void nap(long milliseconds)
{
	struct timespec time = { milliseconds / 1000, milliseconds % 1000 * 1000000L };
	nanosleep(&time, NULL);
}

/* ── the table ────────────────────────────────────────────────────────────────────────────── */

static uint64_t array_sectors(const struct disk *disk, const struct copy *copy)
{
	uint64_t size = (uint64_t)copy->count * copy->entry_size;
	return (size + disk->sector - 1) / disk->sector;
}

static void judge(struct disk *disk, struct copy *copy, uint64_t lba)
{
	uint8_t *head = room(disk->sector);
	uint64_t low, high, sectors;

	memset(copy, 0, sizeof *copy);
	copy->lba = lba;
	copy->head = head;
	if (!read_sectors(disk, head, lba, 1) || memcmp(head, "EFI PART", 8) != 0)
		return;
	copy->header_size = (uint32_t)get(head + 12, 4);
	if (get(head + 8, 4) != 0x10000 || copy->header_size < 92 || copy->header_size > disk->sector)
		return;
	if (header_crc(head, copy->header_size) != get(head + 16, 4) || get(head + 20, 4) != 0)
		return;
	copy->alternate = get(head + 32, 8);
	copy->first_usable = get(head + 40, 8);
	copy->last_usable = get(head + 48, 8);
	copy->entries_lba = get(head + 72, 8);
	copy->count = (uint32_t)get(head + 80, 4);
	copy->entry_size = (uint32_t)get(head + 84, 4);
	if (get(head + 24, 8) != lba || copy->count == 0 || copy->entry_size == 0)
		return;
	if (copy->entry_size % 128 != 0 || copy->entry_size > BLOCK)
		return;
	if ((uint64_t)copy->count * copy->entry_size > MAX_ARRAY)
		return;
	if (copy->first_usable <= PRIMARY_LBA || copy->first_usable > copy->last_usable)
		return;
	if (copy->last_usable >= disk->sectors - 1)
		return;
	sectors = array_sectors(disk, copy);
	low = lba == PRIMARY_LBA ? PRIMARY_LBA + 1 : copy->last_usable + 1;
	high = lba == PRIMARY_LBA ? copy->first_usable : lba;
	if (high < sectors || copy->entries_lba < low || copy->entries_lba > high - sectors)
		return;
	copy->header_ok = true;
	copy->array = room(sectors * disk->sector);
	if (!read_sectors(disk, copy->array, copy->entries_lba, sectors))
		return;
	copy->ok = crc32(0, copy->array, (size_t)copy->count * copy->entry_size) == get(head + 88, 4);
}

static void forget(struct copy *copy)
{
	free(copy->head);
	free(copy->array);
	copy->head = copy->array = NULL;
}

/* Both copies; the one that counts, or NULL. */
static struct copy *read_table(struct disk *disk, struct copy *primary, struct copy *backup)
{
	uint64_t last = disk->sectors - 1, where = last;

	judge(disk, primary, PRIMARY_LBA);
	if (primary->header_ok && primary->alternate > PRIMARY_LBA && primary->alternate <= last)
		where = primary->alternate;
	judge(disk, backup, where);
	return primary->ok ? primary : backup->ok ? backup : NULL;
}

static void seal(uint8_t *head, uint32_t size, uint64_t lba, uint64_t other, uint64_t entries, uint32_t crc)
{
	put(head + 24, lba, 8);
	put(head + 32, other, 8);
	put(head + 72, entries, 8);
	put(head + 88, crc, 4);
	put(head + 16, header_crc(head, size), 4);
}

/* The primary: the 4 KiB block with the header in one piece, flush, then what lies beyond it. */
static bool write_primary(struct disk *disk, const uint8_t *head, const struct copy *sound,
			  uint64_t entries_lba, const uint8_t *array)
{
	uint64_t size = (uint64_t)disk->sector, start = PRIMARY_LBA * size / BLOCK * BLOCK;
	uint64_t limit = sound->first_usable * size - start, base = entries_lba * size - start;
	uint64_t whole = array_sectors(disk, sound) * size, inside = 0;
	size_t length = limit < BLOCK ? (size_t)limit : BLOCK;
	uint8_t *block = room(BLOCK);
	bool done = disk_io(disk, block, length, start, false);

	memcpy(block + (PRIMARY_LBA * size - start), head, size);
	if (base < length) {
		inside = length - base < whole ? length - base : whole;
		memcpy(block + base, array, inside);
	}
	done = done && put_bytes(disk, block, length, start) && fsync(disk->fd) == 0;
	free(block);
	if (done && inside < whole)
		done = put_bytes(disk, array + inside, whole - inside, start + base + inside) &&
		       fsync(disk->fd) == 0;
	return done;
}

static bool write_backup(struct disk *disk, const uint8_t *head, const struct copy *sound,
			 uint64_t lba, uint64_t entries_lba, const uint8_t *array)
{
	uint64_t whole = array_sectors(disk, sound) * disk->sector;

	return put_bytes(disk, array, whole, entries_lba * disk->sector) &&
	       put_bytes(disk, head, disk->sector, lba * disk->sector) && fsync(disk->fd) == 0;
}

/* Take one try from the chosen partition, on both copies. */
static bool spend(struct disk *disk, struct copy *primary, struct copy *backup, const struct copy *sound,
		  const struct choice *chosen)
{
	uint64_t sectors = array_sectors(disk, sound), size = sectors * disk->sector;
	uint64_t primary_entries = primary->header_ok ? primary->entries_lba : PRIMARY_LBA + 1;
	uint64_t backup_entries = backup->lba - sectors;
	size_t covered = (size_t)sound->count * sound->entry_size;
	uint8_t *array = room(size), *head = room(disk->sector);
	uint8_t *at = array + (size_t)(chosen->partition - 1) * sound->entry_size + 48;
	bool done = true;

	memcpy(array, sound->array, size);
	memcpy(head, sound->head, disk->sector);
	if (primary_entries + sectors > sound->first_usable)
		done = false;
	if (backup->header_ok && backup->entries_lba > sound->last_usable &&
	    backup->entries_lba <= backup->lba - sectors)
		backup_entries = backup->entries_lba;
	if (done && !primary->ok) {
		/* The backup is all there is: the primary is made whole before it is touched. */
		seal(head, sound->header_size, PRIMARY_LBA, backup->lba, primary_entries,
		     crc32(0, array, covered));
		done = write_primary(disk, head, sound, primary_entries, array);
	}
	put(at, chosen->attributes - (1ull << 52), 8);
	if (done && backup->lba > sound->last_usable + sectors) {
		memcpy(head, sound->head, disk->sector);
		if (backup->header_ok)
			memcpy(head + sound->header_size, backup->head + sound->header_size,
			       disk->sector - sound->header_size);
		seal(head, sound->header_size, backup->lba, PRIMARY_LBA, backup_entries,
		     crc32(0, array, covered));
		done = write_backup(disk, head, sound, backup->lba, backup_entries, array);
	}
	if (done) {
		memcpy(head, sound->head, disk->sector);
		seal(head, sound->header_size, PRIMARY_LBA, backup->lba, primary_entries,
		     crc32(0, array, covered));
		done = write_primary(disk, head, sound, primary_entries, array);
	}
	if (done) {
		uint8_t *there = room(disk->sector);
		done = read_sectors(disk, there, PRIMARY_LBA, 1) && !memcmp(there, head, disk->sector);
		free(there);
	}
	free(array);
	free(head);
	return done;
}

/* ── the choice ───────────────────────────────────────────────────────────────────────────── */

static bool choose(const struct copy *table, const uint8_t *type, bool unspent_only, struct choice *chosen)
{
	unsigned best = 0;
	uint32_t nth = 0;

	for (uint32_t i = 0; i < table->count; i++) {
		const uint8_t *entry = table->array + (size_t)i * table->entry_size;
		uint64_t bits = get(entry + 48, 8);
		unsigned priority = bits >> 48 & 15, tries = bits >> 52 & 15, good = bits >> 56 & 1;

		if (memcmp(entry, type, 16) != 0)
			continue;
		if (priority > best && (unspent_only ? good && !tries : good || tries)) {
			best = priority;
			chosen->partition = i + 1;
			chosen->nth = nth;
			chosen->attributes = bits;
			memcpy(chosen->guid, entry + 16, 16);
		}
		nth++;
	}
	return best > 0;
}

static bool has_type(const struct copy *table, const uint8_t *type)
{
	for (uint32_t i = 0; i < table->count; i++)
		if (memcmp(table->array + (size_t)i * table->entry_size, type, 16) == 0)
			return true;
	return false;
}

/* The kernel's node of a partition; empty where the disk is an image file. */
static void find_node(const char *disk, uint32_t partition, char *node, size_t size)
{
	char real[PATH_MAX], folder[PATH_MAX];
	const char *name;
	struct dirent *child;
	DIR *dir;

	node[0] = '\0';
	if (realpath(disk, real) == NULL || strncmp(real, "/dev/", 5) != 0)
		return;
	name = real + 5;
	if (snprintf(folder, sizeof folder, "/sys/class/block/%s", name) >= (int)sizeof folder)
		return;
	dir = opendir(folder);
	while (dir != NULL && (child = readdir(dir)) != NULL) {
		char path[PATH_MAX + 300];
		unsigned number = 0;
		FILE *file;

		snprintf(path, sizeof path, "%s/%s/partition", folder, child->d_name);
		file = fopen(path, "re");
		if (file == NULL)
			continue;
		if (fscanf(file, "%u", &number) == 1 && number == partition)
			snprintf(node, size, "/dev/%s", child->d_name);
		fclose(file);
	}
	if (dir != NULL)
		closedir(dir);
}

static bool plain(const char *text)
{
	return strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/_.!:+@%,-") ==
	       strlen(text);
}

static void print_choice(const struct disk *disk, const struct choice *chosen)
{
	static const int order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };
	char node[PATH_MAX];

	find_node(disk->path, chosen->partition, node, sizeof node);
	if (plain(disk->path))
		printf("BASCULE_DISK=%s\n", disk->path);
	printf("BASCULE_PARTITION=%u\n", chosen->partition);
	if (node[0] != '\0' && plain(node))
		printf("BASCULE_NODE=%s\n", node);
	if (chosen->nth < 26)
		printf("BASCULE_SLOT=%c\n", (char)('A' + chosen->nth));
	fputs("BASCULE_PARTUUID=", stdout);
	for (int i = 0; i < 16; i++)
		printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", chosen->guid[order[i]]);
	putchar('\n');
}

static int select_on(const char *path, const uint8_t *type, bool look, uint32_t sector)
{
	struct disk disk;
	struct copy primary, backup, *table;
	struct choice chosen;
	int result = 1;
	bool writable = !look && open_disk(&disk, path, true, sector);

	if (!writable && !open_disk(&disk, path, false, sector)) {
		fprintf(stderr, "bascule-select: %s: %s\n", path, strerror(errno));
		return 3;
	}
	/* udev leaves a disk alone whose node is locked, and so does the agent. */
	for (int i = 0; writable && flock(disk.lock, LOCK_EX | LOCK_NB) != 0 && i < LOCK_TRIES; i++)
		nap(50);
	table = read_table(&disk, &primary, &backup);
	if (table == NULL) {
		fprintf(stderr, "bascule-select: %s: both copies of the partition table are damaged\n", path);
		result = 3;
	} else if (!choose(table, type, false, &chosen)) {
		fprintf(stderr, "bascule-select: %s: no slot can be booted\n", path);
	} else {
		result = 0;
		if (!look && (chosen.attributes >> 52 & 15) != 0 &&
		    !(writable && spend(&disk, &primary, &backup, table, &chosen))) {
			fprintf(stderr, "bascule-select: %s: the try of partition %u could not be written\n",
				path, chosen.partition);
			result = choose(table, type, true, &chosen) ? 0 : 1;
		}
	}
	if (result == 0)
		print_choice(&disk, &chosen);
	forget(&primary);
	forget(&backup);
	close_disk(&disk);
	return result;
}

/* ── finding the disk ─────────────────────────────────────────────────────────────────────── */

/* No slots there, a drive that is slow to say so, or a second view of another disk. */
static bool never(const char *name)
{
	static const char *const kinds[] = { "ram", "zram", "dm-", "sr", "fd" };

	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if (strncmp(name, kinds[i], strlen(kinds[i])) == 0)
			return true;
	return false;
}

static int scan(const uint8_t *type, char found[][PATH_MAX])
{
	DIR *dir = opendir("/sys/class/block");
	struct dirent *entry;
	int count = 0;

	while (dir != NULL && (entry = readdir(dir)) != NULL && count < MAX_DISKS) {
		char path[PATH_MAX];
		struct disk disk;
		struct copy primary, backup, *table;

		snprintf(path, sizeof path, "/sys/class/block/%s/partition", entry->d_name);
		if (entry->d_name[0] == '.' || never(entry->d_name) || access(path, F_OK) == 0)
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		if (!open_disk(&disk, path, false, 0))
			continue;
		table = read_table(&disk, &primary, &backup);
		if (table != NULL && has_type(table, type))
			memcpy(found[count++], path, sizeof path);
		forget(&primary);
		forget(&backup);
		close_disk(&disk);
	}
	if (dir != NULL)
		closedir(dir);
	return count;
}

static bool parse_guid(const char *text, uint8_t *guid)
{
	static const int order[16] = { 3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15 };

	for (int i = 0; i < 16; i++) {
		unsigned value;
		if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
			return false;
		if (strspn(text, "0123456789abcdefABCDEF") < 2 || sscanf(text, "%2x", &value) != 1)
			return false;
		guid[order[i]] = (uint8_t)value;
		text += 2;
	}
	return *text == '\0';
}

static int usage(void)
{
	fputs("usage: bascule-select [--look] [--type GUID] [--wait SECONDS] [--sector-size 512|4096] [DISK]\n",
	      stderr);
	return 2;
}

int main(int argc, char **argv)
{
	static char found[MAX_DISKS][PATH_MAX];
	const char *path = NULL, *guid = FLATCAR_USR;
	long wait = 0, sector = 0;
	uint8_t type[16];
	bool look = false;

	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--look") == 0)
			look = true;
		else if (strcmp(argv[i], "--type") == 0 && i + 1 < argc)
			guid = argv[++i];
		else if (strcmp(argv[i], "--wait") == 0 && i + 1 < argc)
			wait = strtol(argv[++i], NULL, 10);
		else if (strcmp(argv[i], "--sector-size") == 0 && i + 1 < argc)
			sector = strtol(argv[++i], NULL, 10);
		else if (argv[i][0] != '-' && path == NULL)
			path = argv[i];
		else
			return usage();
	}
	if (!parse_guid(guid, type) || wait < 0 || (sector != 0 && sector != 512 && sector != 4096))
		return usage();

	for (long left = wait * 10;; left--) {
		int count = path != NULL ? access(path, F_OK) == 0 : scan(type, found);

		if (count > 1) {
			fprintf(stderr, "bascule-select: several disks have slots, %s and %s among them; name one\n",
				found[0], found[1]);
			return 3;
		}
		if (count == 1)
			return select_on(path != NULL ? path : found[0], type, look, (uint32_t)sector);
		if (left <= 0)
			break;
		nap(100);
	}
	fprintf(stderr, "bascule-select: %s\n", path != NULL ? "the disk does not appear" : "no disk has slots");
	return 3;
}
